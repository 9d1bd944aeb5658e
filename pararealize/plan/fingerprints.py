"""BlockChain -> its fingerprint: what a plan knows its network by."""

import hashlib
import json

from pararealize.analysis.blocks import BlockChain

__all__ = ["fingerprint"]


def fingerprint(chain: BlockChain) -> str:
    """Sixteen hexadecimal digits that depend on the blocks' names, kinds and exact structure, not on weights."""
    parts = [
        (block.name, block.kind, block.exact_signature, str(block.x), str(block.y))
        for block in (chain.stem, *chain.blocks, chain.head)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
