"""The C++ of model/native under the sanitizers: no read or write astray, no race, no overflow.

kernels/main.cpp takes random steps of small decoders of odd shapes. Its memory.h takes the place of
the real one, so that every buffer ends where its last element does.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from model.native import library

OURS = Path(__file__).parent / "kernels"
FLAGS = ("-O0", "-march=native", "-std=c++20", "-ffp-contract=off", "-pthread")


@pytest.mark.long
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
@pytest.mark.usefixtures("kernels")
def test_random_steps_are_clean(sanitizers: str, tmp_path: Path) -> None:
    compiler = library.compiler()
    if compiler is None:
        pytest.skip("the kernels are in the cache, but there is no C++ compiler any more")
    for folder in (library.KERNELS, OURS):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    program = tmp_path / "steps"
    checks = (f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all")
    command = [compiler, *FLAGS, *checks, str(tmp_path / "main.cpp"), "-o", str(program)]
    subprocess.run(command, check=True)
    ran = subprocess.run([program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "clean\n"
