"""Studies against the truth: all sub-networks of a small network, what selectors and searches miss, and by how much.

`subnetworks` trains every set of masks (`mask_sets`); `regret`, `worth` and `table_search` compare choices with it;
`statistics` says how sure that is, `study_page` shows it; `testing` tries a selector of one's own. Imports everything
but `app`.
"""

from maskprune.lab import mask_sets as mask_sets
from maskprune.lab import regret as regret
from maskprune.lab import subnetworks as subnetworks
from maskprune.lab import table_search as table_search
from maskprune.lab import testing as testing
from maskprune.lab import worth as worth
