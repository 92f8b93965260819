"""Reads and compares mathematical answers with math-verify, in a process of its own.

Completions are written by a model, and to evaluate ``9^{9^9}`` takes for ever. math-verify's own time-outs are signals,
which work in a main thread alone and wait for a long integer operation to end; a process can be killed from any thread.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import sys
import threading

SECONDS = 10.0
"""Time for one completion; most take some milliseconds."""
CHARACTERS = 2000
"""What is read of a completion: its end."""
MEMORY = 4 << 30
"""Bytes of addresses that the process may use, where the system can limit them."""


class MathJudge:
    """Starts the process when it is first asked, and again after one was killed. Any thread may ask."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def __call__(self, completion: str, wanted: str) -> tuple[str | None, bool]:
        """Returns the answer that was read, None where there is none or it takes too long, and whether it is right."""
        with self._lock:
            for _ in range(2):  # a process may have ended since it was last asked
                process = self._process or self._start()
                with contextlib.suppress(OSError):
                    process.stdin.write(json.dumps([completion[-CHARACTERS:], wanted]) + "\n")  # type: ignore[union-attr]
                    process.stdin.flush()  # type: ignore[union-attr]
                    reply = self._line(process, self.seconds)
                    if reply is not None:
                        answer, right = json.loads(reply)
                        return answer, right
                    self._end(process)
                    return None, False
                self._end(process)
        return None, False

    def _start(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        # A session of its own: Ctrl-C is for the training. It ends when its input does.
        self._process = process = subprocess.Popen(
            [sys.executable, __file__], stdin=pipe, stdout=pipe, text=True, start_new_session=True
        )
        if self._line(process, 300.0) is None:
            self._end(process)
            raise RuntimeError(f"{sys.executable} {__file__} did not start; its own message stands above")
        return process

    def _line(self, process: subprocess.Popen[str], seconds: float) -> str | None:
        """What the process writes within so many seconds; None where it writes nothing, or has ended."""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
            if not selector.select(seconds):
                return None
        return process.stdout.readline() or None  # type: ignore[union-attr]

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        self._process = None


def _serve() -> None:
    from math_verify import parse, verify

    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print(flush=True)
    for line in sys.stdin:
        completion, wanted = json.loads(line)
        answer, right = None, False
        with contextlib.suppress(Exception):  # RecursionError, MemoryError
            found = parse(completion, parsing_timeout=2, raise_on_error=False)
            answer = str(found[-1]) if found else None
            gold = parse(f"\\boxed{{{wanted}}}", parsing_timeout=2, raise_on_error=False)
            right = bool(verify(gold, found, timeout_seconds=2, raise_on_error=False))
        print(json.dumps([answer, right]), flush=True)


if __name__ == "__main__":
    _serve()
