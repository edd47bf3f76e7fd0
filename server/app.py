"""Flower's entry point of the coordinator: binds fedtune's server to a ServerApp."""

from fedtune.federation.server import build_server_app

app = build_server_app()
