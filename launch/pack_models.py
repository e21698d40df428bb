"""Copy trained models into the package: python launch/pack_models.py RUNS

RUNS/NAME/model of each model of configs/models.py that is there goes to emjax/models/box/NAME, and
its digest to emjax/models/box/digests.json. The cards, README.md, are written by hand.
"""

import json
import shutil
import sys
from pathlib import Path

from configs.models import MODELS, PACKED
from emjax.files import write_atomically
from emjax.models import pretrained, saved


def pack(runs: Path) -> list[str]:
    """Return the names of the models of `runs` that are in the package now."""
    names = [name for name in MODELS if (runs / name / "model").is_dir()]
    for name in names:
        folder = pretrained.BOX / name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(runs / name / "model/model.safetensors", folder)
        config = json.loads((runs / name / "model/config.json").read_text())
        config |= {"title": name, **PACKED.get(name, {})}
        write_atomically(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())
        digests = json.loads((pretrained.BOX / "digests.json").read_text())
        digests[name] = saved.digest(folder)
        text = json.dumps(digests, indent=1, sort_keys=True) + "\n"
        write_atomically(pretrained.BOX / "digests.json", text.encode())
    return names


if __name__ == "__main__":
    print("\n".join(pack(Path(sys.argv[1]))))
