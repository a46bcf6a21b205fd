"""What is said at the end of preprocessing."""

from hai.faces.journal import FileRecord
from hai.faces.summary import summarise
from hai.launch import preprocess


def test_names_do_not_reach_the_terminal_raw(tmp_path, capsys):
    odd = "real/a\x1b[2J\n\udcff.mp4"
    records = [FileRecord(odd, 1, "video", 0, "so\x1b[1m", "a", "a", "train", 0, 0, error) for error in ("", "broken")]
    preprocess._tell(summarise(records, "mtcnn"), tmp_path)
    preprocess._say(f"warning: {odd}")
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert said.err.count(r"real/a\x1b[2J\n\udcff.mp4") == 3
