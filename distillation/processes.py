"""Work in a process of its own, whose memory and whose end are no one else's."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def in_a_process_of_its_own() -> ProcessPoolExecutor:
    """One other process, begun afresh: what it does leaves no trace in the memory of this one."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver"))
