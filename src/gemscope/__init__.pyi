from gemscope import errors as errors
from gemscope.activations.capture import Activations as Activations
from gemscope.activations.harvest import harvest as harvest
from gemscope.activations.load import load_model as load_model
from gemscope.activations.model import LanguageModel as LanguageModel
from gemscope.activations.site import Site as Site
from gemscope.activations.store import Store as Store
from gemscope.edits.splice import Splice as Splice
from gemscope.features.activations import FeatureActivations as FeatureActivations
from gemscope.features.catalog import catalog as catalog
from gemscope.features.files.saelens import save_sae as save_sae
from gemscope.features.load import load_sae as load_sae
from gemscope.features.sae import SAE as SAE
from gemscope.features.sae import SAEInfo as SAEInfo
from gemscope.reports.check import Check as Check
from gemscope.reports.check import check as check
from gemscope.reports.look import Look as Look
from gemscope.reports.look import look as look
from gemscope.reports.score import Score as Score
from gemscope.reports.score import score as score
from gemscope.text.corpus import Corpus as Corpus
from gemscope.text.corpus import Document as Document
from gemscope.text.tokens import Tokens as Tokens
from gemscope.training.config import TrainConfig as TrainConfig
from gemscope.training.train import train as train

__version__: str
