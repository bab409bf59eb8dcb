# Runs Python's own tests that the command line names; prints one line each that is the same everywhere.
import subprocess
import sys

failed = False
for name in sys.argv[1:]:
    command = [sys.executable, "-m", "test", "--timeout", "1500", name]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    verdict = "ok" if done.returncode == 0 else f"status {done.returncode}"
    print(name, verdict, flush=True)
    if done.returncode != 0:
        failed = True
        print(done.stdout[-6000:], file=sys.stderr, flush=True)
sys.exit(failed)
