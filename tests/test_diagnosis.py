"""The doctor's findings on this machine and on simulated broken ones."""

import vlkit
from vlkit import diagnosis


def test_a_working_machine_has_no_problems():
    found = vlkit.doctor()
    assert found.problems == []
    topics = [finding.topic for finding in found.findings]
    assert {"python", "packages", "memory", "disk", "models on disk"} <= set(topics)
    assert str(found).endswith("Ready.")
    assert "<table" in found._repr_html_()


def test_a_missing_package_is_a_problem_with_a_remedy(monkeypatch):
    real = diagnosis.package_version
    monkeypatch.setattr(
        diagnosis, "package_version", lambda name: None if name == "accelerate" else real(name)
    )
    problem = vlkit.doctor().problems[0]
    assert "accelerate" in problem.value and problem.remedy == "pip install accelerate"


def test_old_transformers_is_a_problem(monkeypatch):
    real = diagnosis.package_version
    monkeypatch.setattr(
        diagnosis, "package_version", lambda name: "5.9.1" if name == "transformers" else real(name)
    )
    assert "5.9.1 is too old" in vlkit.doctor().problems[0].value


def test_a_check_that_breaks_is_reported_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda path: 1 / 0)
    found = vlkit.doctor()
    assert "ZeroDivisionError" in found.problems[0].value
    assert any(finding.topic == "models on disk" for finding in found.findings)


def test_findings_are_escaped_in_a_notebook(monkeypatch):
    monkeypatch.setattr(diagnosis, "_check_python", lambda: [diagnosis.Finding("<b>", "<script>")])
    assert "<script>" not in vlkit.doctor()._repr_html_()


def test_the_chosen_model_is_told_and_a_broken_choice_is_a_problem(tmp_path, monkeypatch):
    def chosen():
        (finding,) = [f for f in vlkit.doctor().findings if f.topic == "chosen model"]
        return finding

    path = tmp_path / "settings.json"
    monkeypatch.setenv("VLKIT_SETTINGS", str(path))
    assert chosen().value == "the bundled one"
    path.write_text('{"model": "models/a"}')
    assert chosen().value == f"models/a, chosen by {path}"
    path.write_text("{")
    found = chosen()
    assert found.level == "problem" and "is broken" in found.value and found.remedy
