"""How many examples a property test draws: a third of them here, all where VIREID_EXAMPLES=whole, as every week."""

import os


def of(count: int) -> int:
    return count if os.environ.get("VIREID_EXAMPLES") == "whole" else -(-count // 3)
