"""Who holds which rows: splits of one dataset over sites, and of one site into training and held-out."""

from fedtune.data.partition.base import Partition
from fedtune.data.partition.held_out import HeldOutSplit, split_held_out
from fedtune.data.partition.split import label_counts, partition

__all__ = ["HeldOutSplit", "Partition", "label_counts", "partition", "split_held_out"]
