"""Moves all rows of a map to another, by descriptors; with "again" back and forth until it is killed."""

import sys
from contextlib import closing

from sockledger.kernel.libbpf import OpenMap
from sockledger.kernel.move import Mover


def main(here: OpenMap, there: OpenMap, how: str) -> None:
    words = {word: word for word in range(here.value_size // 8)}
    keys = [keys[at : at + 4] for keys, _ in here.batches() for at in range(0, len(keys), 4)]
    with closing(Mover(here, there, words)) as going, closing(Mover(there, here, words)) as coming:
        print("ready", flush=True)
        for key in keys:
            going.move(key, key)
        while how == "again":
            for mover in (coming, going):
                for key in keys:
                    mover.move(key, key)


if __name__ == "__main__":
    main(OpenMap(int(sys.argv[1])), OpenMap(int(sys.argv[2])), sys.argv[3])
