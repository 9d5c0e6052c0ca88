"""SIGTERM and SIGINT end a server whenever they come, whichever thread they interrupt."""

import subprocess
import sys

import pytest

#: The signal is handled in another thread while the main one sleeps: a handler that sets an event never runs then.
_IN_ANOTHER_THREAD = """
import signal, threading, time
from clients.node.stop_signal import StopSignal

stop = StopSignal()

def receive():
    time.sleep(0.3)
    signal.pthread_kill(threading.get_ident(), signal.{name})
    time.sleep(60)

threading.Thread(target=receive, daemon=True).start()
stop.wait()
"""
_BEFORE_THE_WAIT = """
import os, signal
from clients.node.stop_signal import StopSignal

stop = StopSignal()
os.kill(os.getpid(), signal.{name})
stop.wait()
"""
#: Another signal is no reason to stop; it is handled, and the wait goes on.
_AFTER_ANOTHER = """
import os, signal, threading, time
from clients.node.stop_signal import StopSignal

stop, seen = StopSignal(), []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
os.kill(os.getpid(), signal.SIGUSR1)
threading.Timer(0.5, os.kill, (os.getpid(), signal.{name})).start()
begun = time.monotonic()
stop.wait()
assert seen and time.monotonic() - begun > 0.4
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("script", [_IN_ANOTHER_THREAD, _BEFORE_THE_WAIT, _AFTER_ANOTHER])
def test_a_signal_to_stop_is_never_missed(script: str, name: str) -> None:
    ended = subprocess.run([sys.executable, "-c", script.format(name=name)], timeout=20, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
