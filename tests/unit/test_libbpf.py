"""What a refusal to load says."""

import errno
import os

import pytest

from sockledger.kernel.libbpf import LoadError

LOG = ["libbpf: prog 'sl_receive': failed to load", "Func#3 ('is_closing') is safe", "processed 12 insns"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "Permission denied (Func#3 ('is_closing') is safe)"),
        (errno.EMFILE, "Too many open files (libbpf: prog 'sl_receive': failed to load)"),
    ],
)
def test_the_verifiers_word_counts_where_it_has_objected(number: int, said: str) -> None:
    assert str(LoadError(OSError(number, os.strerror(number)), LOG)) == said
