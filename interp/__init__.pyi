# For editors and type checkers, which read and do not run: what `__init__.py` imports on first use.
from interp import attribution as attribution
from interp import extract as extract
from interp import faithfulness as faithfulness
from interp import maps as maps
from interp import measures as measures
from interp import plots as plots
from interp import scoring as scoring
from interp import stats as stats
from interp import store as store
from interp import validate as validate
from interp.data import load_samples as load_samples
from interp.data.sample import Sample as Sample
from interp.explained import Explained as Explained
from interp.explained import explain as explain
from interp.inputs.completions import Completion as Completion
from interp.loading import load_model as load_model
from interp.loading import wrap as wrap
from interp.maps import alignment as alignment
from interp.model.vlm import VLM as VLM
from interp.pages.page import page as page
from interp.store import open_run as open_run

__version__: str
