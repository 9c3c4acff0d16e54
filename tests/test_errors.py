"""What tools tell at their end."""

import pytest
from tqdm import tqdm

from odam_d2.errors import UserError, run_tool


@pytest.mark.parametrize(
    ("raised", "sentence", "status"),
    [
        (UserError("the folder is full"), "error: the folder is full", 1),
        (OSError(28, "No space left on device", "x.json"),
         "error: No space left on device: 'x.json'", 1),
        (KeyboardInterrupt("after 3 images"), "interrupted after 3 images", 130),
    ],
)  # fmt: skip
def test_a_sentence_has_a_line_of_its_own_where_a_progress_bar_stands(
    raised, sentence, status, capsys
):
    bars = []

    def main():
        bars.append(tqdm(range(5)))  # nothing closes it, since it is not iterated
        raise raised

    assert run_tool(main) == status
    lines = capsys.readouterr().err.replace("\r", "\n").split("\n")
    bars[0].close()
    assert lines.count(sentence) == 1
