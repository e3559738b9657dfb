"""The entry of a forked process of the zoo. Light to import: its parent must not import torch."""

from __future__ import annotations

from multiprocessing.connection import Connection


def serve(rank: int, world_size: int, port: int, log: str, orders: Connection) -> None:
    """Answer one order after another until the parent is gone."""
    from bench.zoo.member import answer_orders

    answer_orders(rank, world_size, port, log, orders)
