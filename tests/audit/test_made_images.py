"""Images beside the rows of an entry made with the kit are compared with the questions' images."""

from photos import encoded, photo
from PIL import ImageOps

from toolkit.audit import rows
from toolkit.data.samples import text_of
from toolkit.files import write_jsonl


def test_a_mirrored_evaluation_image_is_to_be_looked_at(tmp_path, monkeypatch):
    (tmp_path / "synthetic_images").mkdir()
    for name, image in (("a", ImageOps.mirror(photo(3))), ("b", photo(4))):
        (tmp_path / f"synthetic_images/{name}.jpg").write_bytes(encoded(image))
    samples = [{"id": n, "text": text_of(n), "images": [f"synthetic_images/{n}.jpg"]} for n in ("a", "b")]
    write_jsonl(tmp_path / "rows.jsonl", samples)
    question = {"textvqa q.jpg": encoded(photo(3))}
    monkeypatch.setattr(rows, "CONTEST", ())  # no questions but that one
    monkeypatch.setattr("toolkit.evaluate.look_alikes.pictures", lambda evaluation: question)
    read = rows.read("rows.jsonl", tmp_path / "rows.jsonl")
    (finding,) = rows.uncontaminated(read, tmp_path / "rows.jsonl", tmp_path)
    assert (finding.id, finding.severity) == ("D4", "warning")
    assert "synthetic_images/a.jpg" in finding.message and "textvqa q.jpg" in finding.message
