from hai.console import plain


def test_a_name_stays_within_its_line():
    assert plain("Gesicht ä 顔.jpg") == "Gesicht ä 顔.jpg"
    assert plain("new\nline \x1b[2J.jpg") == r"new\nline \x1b[2J.jpg"
