"""Finds something wrong, and goes on."""


def run(report, *, cpu):
    report.check("first", False, "2 is not 3")
    report.check("second", True, "")
    report.goal("speed", 0.1, "at least 0.4", met=False)
    report.skip("flash", "not installed")
    report.headline("0.1")
    report.figure("after", 1)
