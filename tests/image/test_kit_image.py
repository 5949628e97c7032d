"""The kit's image runs each of its programs as the kit's pods do."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.image.kit import FOLDER, KIT, kit_image
from tests.image.test_image import podman_with


def test_every_program_that_a_manifest_names_starts_in_it_as_its_user() -> None:
    named = {
        word
        for path in (*FOLDER.glob("*.yaml"), *FOLDER.glob("smaller/*.yaml"))
        for one in yaml.safe_load_all(path.read_text())
        for word in str(one).replace("'", " ").replace(",", " ").split()
        if word.startswith("/kit/") and word.endswith(".py")
    }
    assert {Path(name).stem for name in named} == {"gateway", "inference", "train", "checkpoint_manager"}
    with podman_with(kit_image()) as podman:
        script = "id -u; " + "; ".join(f"python3 {name} --help >/dev/null || exit 1" for name in sorted(named))
        done = podman("run", "--entrypoint=sh", KIT, "-c", script)
    assert (done.returncode, done.stdout) == (0, "65532\n"), done.stderr
