"""Flower's entry point of a virtual client: binds fedtune's handlers to a ClientApp."""

from fedtune.federation.client import build_client_app
from fedtune.simulation.sites import site_of_context

app = build_client_app(site_of_context)
