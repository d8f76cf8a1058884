"""FLOPs by part, which come from formulas, beside those that are counted while the network runs."""

from dataclasses import replace

from tinygmf.config import VARIANTS
from tinygmf.study.summary import flops_by_part, summarize


def test_the_parts_of_blocks_are_what_is_counted_in_blocks():
    """One more block in a stage adds what the formulas say, whatever else there is."""
    config = VARIANTS["groupmixformer_nano"]
    first, second, *others = config.serial_depths
    deeper = replace(config, serial_depths=(first, second + 1, *others))
    parts, more = flops_by_part(config), flops_by_part(deeper)
    added = {part: more[part] - parts[part] for part in parts}
    assert added.pop("stem, embeddings, head") == 0
    counted = [summarize(one)[2].flops for one in (config, deeper)]
    assert sum(added.values()) == counted[1] - counted[0] > 0


def test_what_is_removed_is_what_the_part_costs():
    config = VARIANTS["groupmixformer_nano"]
    parts, total = flops_by_part(config), sum(row.flops for row in summarize(config))
    for part in ("cpe", "crpe"):
        without = replace(config, attention=replace(config.attention, **{part: False}))
        assert total - sum(row.flops for row in summarize(without)) == parts[part]
    assert sum(parts.values()) == total
