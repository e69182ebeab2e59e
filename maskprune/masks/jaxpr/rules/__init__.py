"""One rule per primitive, in one table. `trace(..., rules=RULES | {"my_primitive": Rule(...)})` adds your own."""

from maskprune.masks.jaxpr.rules import calls, elementwise, indexing, placement, shapes, sums
from maskprune.masks.jaxpr.rules.base import Equation as Equation
from maskprune.masks.jaxpr.rules.base import Rule as Rule
from maskprune.masks.jaxpr.rules.base import Site as Site
from maskprune.masks.jaxpr.rules.base import rebind as rebind
from maskprune.masks.jaxpr.rules.elementwise import elementwise as elementwise_label


RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **shapes.RULES,
    **sums.RULES,
    **indexing.RULES,
    **placement.RULES,
    **calls.RULES,
}

ELEMENTWISE = Rule(elementwise_label)
