"""What one datum may be: a file per space."""

from pofx.spaces.audio import Audio as Audio
from pofx.spaces.codes import Codes as Codes
from pofx.spaces.image import Image as Image
from pofx.spaces.label import Label as Label
from pofx.spaces.pair import Pair as Pair
from pofx.spaces.reals import Reals as Reals
from pofx.spaces.sequence import Sequence as Sequence
from pofx.spaces.table import Category as Category
from pofx.spaces.table import Column as Column
from pofx.spaces.table import Integer as Integer
from pofx.spaces.table import Real as Real
from pofx.spaces.table import Table as Table
from pofx.spaces.text import Text as Text
