"""The kernel checks reject every planted bug, and accept the unchanged source."""
import planted_kernel_bugs
import pytest
from planted_kernel_bugs import BUGS, CHECKS, mutant


@pytest.mark.parametrize("bug", BUGS)
def test_planted_kernel_bug_is_rejected(bug, tmp_path):
    module, line, wrong = BUGS[bug]
    broken = mutant(module, line, wrong, tmp_path)
    with pytest.raises(AssertionError, match=r"error must be at most .*, got|a second backward"):
        CHECKS[module](broken)


@pytest.mark.parametrize("module", CHECKS)
def test_the_source_itself_is_accepted(module, tmp_path):
    assert module in {entry[0] for entry in BUGS.values()}
    planted_kernel_bugs.RNG = planted_kernel_bugs.np.random.default_rng(11)
    CHECKS[module](mutant(module, "import torch\n", "import torch\n", tmp_path))
