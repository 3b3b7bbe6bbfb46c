"""What test_properties.py draws from, and how often."""

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings

# The same examples in every run, and nothing kept on disk; the machine may be slow.
_SAME = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
MANY = settings(_SAME, max_examples=100)
SOME = settings(_SAME, max_examples=30)

# Any text that a text file can hold: control characters, quotes, line ends, emoji, right to left.
_characters = st.characters(codec="utf-8", exclude_characters="\0")
unicode_text = st.text(_characters, min_size=1, max_size=20)
names = unicode_text.map(str.strip).filter(bool)
transcripts = unicode_text.filter(str.strip)
finite = st.floats(allow_nan=False, allow_infinity=False)
