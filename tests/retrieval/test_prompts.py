"""Prompt templates: the published ensemble, own lists and files, and what is refused."""

from __future__ import annotations

import pytest

from retrieval.prompts import load_templates
from utils.errors import ConfigError, DataError


def test_published_ensemble():
    templates = load_templates()
    assert len(templates) == len(set(templates)) == 85
    assert templates[0] == "a bad photo of a {}."
    assert load_templates(["retrieval_85"]) == templates
    assert load_templates("raw_name") == ("{}",)


def test_own_list_and_single_template():
    assert load_templates(["a {} here", "the {}"]) == ("a {} here", "the {}")
    assert load_templates("one {}") == ("one {}",)


def test_text_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# mine\n\n a drawing of a {}. \nthe {}\n", encoding="utf-8")
    assert load_templates(path) == load_templates([str(path)]) == ("a drawing of a {}.", "the {}")


def test_template_without_place_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"template 2 has no \{\} in the place of the category name: 'a photo'"):
        load_templates(["a {}", "a photo"])
    path = tmp_path / "prompts.txt"
    path.write_text("a photo\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"prompts.txt: template 1 has no \{\}"):
        load_templates(path)
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"expected prompt templates, found none"):
        load_templates(path)


def test_unknown_name_lists_choices():
    with pytest.raises(DataError, match=r"retrieval_86: no such prompt file.*retrieval_85, raw_name"):
        load_templates("retrieval_86")
