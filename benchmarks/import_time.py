"""How long ``import jaxopt_pde`` takes beyond what it is built on, in fresh interpreters.

Run: ``python benchmarks/import_time.py`` (a minute). Wall and CPU time of the import, byte code cached; importing JAX
and optax is the unit.
"""

import subprocess
import sys

import numpy as np
import paired

PROGRAM = """
import time
clocks = lambda: (time.perf_counter(), time.process_time())
start = clocks()
import jax, optax
middle = clocks()
import jaxopt_pde
end = clocks()
print(*(b - a for a, b in zip((*start, *middle), (*middle, *end))))
"""


def main() -> None:
    """Measures and prints."""
    arguments = paired.parser(__doc__, repetitions=9).parse_args()
    measure = lambda: subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True).stdout
    measure()  # writes the byte code
    seconds = np.asarray([measure().split() for _ in range(arguments.repetitions)], float)
    below, ours = seconds[:, :2], seconds[:, 2:]
    rows = [
        {"row": name, **paired.ratios(part, below)}
        for name, part in (("import jax, optax", below), ("import jaxopt_pde, beyond those", ours))
    ]
    where = paired.environment(("jaxopt_pde", "jax", "optax"))
    paired.print_rows("Import", "what", rows, where, digits=0)
    paired.write(arguments.json, where, rows)


if __name__ == "__main__":
    main()
