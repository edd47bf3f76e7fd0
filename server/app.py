"""Flower's entry point of the coordinator: binds fedtune's server to a ServerApp."""

from fedtune.coordinator.app import build_server_app

app = build_server_app()
