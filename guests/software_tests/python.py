# Runs Python's own tests that the command line names; prints one line each that is the same everywhere.
import subprocess
import sys

# It writes beside Python's own tests, which lie on a disk that is read only in the guest.
LEFT_OUT = ["-i", "test_unpickle_module_race"]

failed = False
for name in sys.argv[1:]:
    command = [sys.executable, "-m", "test", "--timeout", "1500", "-W", *LEFT_OUT, name]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    verdict = "ok" if done.returncode == 0 else f"status {done.returncode}"
    print(name, verdict, flush=True)
    if done.returncode != 0:
        failed = True
        # What went wrong stands before the verbose second try, which may well pass.
        at = max(0, done.stdout.find("Traceback"))
        print(done.stdout[at : at + 6000], file=sys.stderr, flush=True)
sys.exit(failed)
