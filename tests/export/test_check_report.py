"""The report of every export: what is measured again replaces its row, and the others stay."""

import json

from recipes.measure import export_check


def test_a_report_of_exports_keeps_the_rows_of_the_same_weights(tmp_path, capsys):
    file, own, others = tmp_path / "report.json", {"m": {"unet": "1"}}, {"m": {"unet": "2"}}
    assert export_check.kept(file, "m", own) == {}
    old = {"model": "m", "exports": {"a-fp16": {"bytes": 1}, "b-fp16": {"bytes": 2}}, "date": "then", "weights": own}
    file.write_text(json.dumps(old))
    assert export_check.kept(file, "m", own)["b-fp16"] == {"bytes": 2, "date": "then", "weights": own}
    mixed = {"a-fp16": {"bytes": 1, "date": "then", "weights": others}, "b-fp16": {"bytes": 2, "weights": own}}
    file.write_text(json.dumps({"model": "m", "exports": mixed}))
    assert list(export_check.kept(file, "m", own)) == ["b-fp16"]
    assert "left out, as they are of other weights: a-fp16" in capsys.readouterr().err
    assert export_check.kept(file, "another", own) == {}
