"""Whole commands of a checkout: what a user waits for, from the start of the process.

`prepare(case, data, checkout)` is that of ours.py. Nothing of emjax is imported for it, so this
file also measures a checkout that does not know the case.
"""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.cases import Prepared


def prepare(case, data, checkout):
    """{variant: function that gives its Prepared} of a Case."""
    return {"emjax": functools.partial(KINDS[case.kind], Path(data).absolute(), checkout)}


def predict(data, checkout):
    """emjax.predict of one of the exported patches, with a filled compile cache.

    The checkout trains the model itself, once.
    """
    folder = Path(tempfile.mkdtemp(dir=data))
    image = min((data / "files").glob("*.tif"))
    environment = {
        **os.environ,
        **packages_of(checkout),
        "PYTHONDONTWRITEBYTECODE": "",  # else every start compiles all modules anew
    }

    def run(module, *arguments):
        subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def predicted(steps):
        for _ in range(steps):
            run("emjax.predict", f"--model={folder}/run", f"--out={folder}/predicted", str(image))

    recipe = "--config=configs/pretrain.py:smoke,reconstruction"
    run("emjax.main", recipe, f"--workdir={folder}/run", f"--config.data.dir={data}/records")
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    predicted(1)  # fills the cache
    return Prepared(predicted, steps=1)


def packages_of(checkout):
    """The environment in which Python imports the packages of a checkout before all others."""
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(checkout), *([others] if others else [])])}


KINDS = {"start_predict": predict}
