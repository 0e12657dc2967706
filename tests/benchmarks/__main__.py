"""Every benchmark, or those that are named, one after the other, as one page of tables.

python -m tests.benchmarks [certify_speed search_speed budget_samples memory_speed train_speed]
"""

import datetime
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
COMMANDS = (
    ("Certifying, ResNet-20", "certify_speed.py --arch cifar_resnet20 --n 2000 --rounds 5"),
    ("Certifying, ResNet-18", "certify_speed.py --arch cifar_resnet18 --n 300 --rounds 3"),
    ("Choosing sigma_x", "search_speed.py --images 8"),
    ("Fewer samples", "budget_samples.py"),
    ("The memory", "memory_speed.py --rounds 9"),
    ("Training", "train_speed.py --rounds 3"),
)


def main() -> None:
    wanted = sys.argv[1:]
    print(f"# Benchmarks\n\n`{' '.join(['python -m tests.benchmarks', *wanted])}`, {datetime.date.today()}")
    for title, command in COMMANDS:
        script, *arguments = command.split()
        if wanted and script.removesuffix(".py") not in wanted:
            continue
        print(f"\n## {title}\n\n`python tests/benchmarks/{command}`\n", flush=True)
        done = subprocess.run([sys.executable, HERE / script, *arguments], stdout=subprocess.PIPE, text=True)
        print(done.stdout.strip() if done.returncode == 0 else "It failed: see the messages on the terminal.")


if __name__ == "__main__":
    main()
