"""Study: the same networks compared at several deformations of the objects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.files import without_nan

from ..pages import group_colours, plot_curves
from .difference_plots import plot_gains
from .differences import Difference
from .report import report_parts, templates
from .result import Comparison
from .trend import describe_trend, explain_trend, gain_trend

METRIC = "AP"


@dataclass(frozen=True)
class Study:
    """Result of a study.

    Attributes:
        comparisons: comparisons by deformation, in ascending order. Groups have the same names and the same base.
    """

    comparisons: dict[float, Comparison]

    @property
    def strongest(self) -> Comparison:
        """Comparison at the strongest deformation, which has all networks."""
        return self.comparisons[max(self.comparisons)]

    @property
    def gains(self) -> dict[str, dict[float, Difference]]:
        """Difference of AP to the base, by network name and deformation."""
        return {
            name: {
                level: comparison.differences[name][METRIC]
                for level, comparison in self.comparisons.items()
                if name in comparison.differences
            }
            for name in self.strongest.differences
        }

    @property
    def sentences(self) -> list[str]:
        """Trend of each network that was trained at several deformations, with possible reasons."""
        base = self.strongest.base
        base_ap = {level: comparison.groups[base].mean(METRIC) for level, comparison in self.comparisons.items()}
        found = []
        for name, gains in self.gains.items():
            if len(gains) < 2:
                continue
            groups = [self.comparisons[level].groups[each] for level in gains for each in (base, name)]
            spread = max(group.spread(METRIC) for group in groups)
            parts = (
                describe_trend(name, base, gains, base_ap),
                explain_trend(gain_trend(gains), base, base_ap, spread),
            )
            found.append(" ".join(filter(None, parts)))
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the study as plain values."""
        gains = {
            name: {f"{level:g}": found._asdict() for level, found in gains.items()}
            for name, gains in self.gains.items()
        }
        return {
            "sentences": self.sentences,
            "gains": without_nan(gains),
            "deformations": {f"{level:g}": comparison.as_json() for level, comparison in self.comparisons.items()},
        }


def render_study(study: Study, links: Mapping[str, str]) -> str:
    """Render a study as an HTML page: trend of the gains, then the comparison at the strongest deformation.

    Args:
        study: the study.
        links: titles and relative addresses of the reports of each deformation.
    """
    parts = report_parts(study.strongest)
    colours = group_colours([*study.strongest.groups])
    several = {name: gains for name, gains in study.gains.items() if len(gains) > 1}
    values = {
        name: [
            ([*levels], [100 * comparison.groups[name].values(METRIC)[seed] for comparison in levels.values()])
            for seed in range(min(len(comparison.groups[name].runs) for comparison in levels.values()))
        ]
        for name in (study.strongest.base, *several)
        for levels in [{at: found for at, found in study.comparisons.items() if name in found.groups}]
    }
    plots = [
        plot_curves(
            values, colours, name="study-ap", title="AP on the val split, x100", x_label="deformation of the shapes"
        ),
        plot_gains(
            several,
            colours,
            name="study-gain",
            title=f"Difference of AP to {study.strongest.base}, x100, with 95 % intervals",
            x_label="deformation of the shapes",
        ),
    ]
    template = templates().get_template("study.html.j2")
    return template.render(parts, study=study, study_plots=plots, several=[*values], links=links)
