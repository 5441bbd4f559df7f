"""The core phrase of prompt injection, "ignore all previous instructions", in seven languages other than English.

Reads and writes nothing. A language gives its verbs, the words that may stand between, which instructions, and its
words for them; the order is the language's.
"""

import re
from collections.abc import Sequence

from tasks.screening.folding import fold
from tasks.screening.phrases import Family, spaced


def _words(alternatives: Sequence[str]) -> str:
    """Return a pattern of one of the phrases, folded as the text is."""
    return "(?:" + "|".join(re.escape(fold(word)).replace(r"\ ", " ") for word in alternatives) + ")"


def _western(verbs: Sequence[str], fillers: Sequence[str], which: Sequence[str], nouns: Sequence[str]) -> Family:
    """Return verb, fillers, and `previous instructions` in either order."""
    begin = rf"{_words(verbs)} (?:{_words(fillers)} ){{0,5}}"
    either = rf"(?:{_words(which)} (?:[^\W_]+ )?{_words(nouns)}|{_words(nouns)} (?:[^\W_]+ ){{0,2}}{_words(which)})"
    return Family(tuple(map(fold, verbs)), spaced(begin + either), tuple(map(fold, nouns)))


def _eastern(first: Sequence[str], second: Sequence[str], third: Sequence[str]) -> Family:
    """Return three parts with a few characters between them, in scripts that do not part words."""
    return Family(
        tuple(map(fold, first)),
        re.compile(rf"{_words(first)}[^。\n]{{0,6}}?{_words(second)}[^。\n]{{0,6}}?{_words(third)}"),
        tuple(map(fold, third)),
    )


SPANISH = _western(
    ("ignora", "ignore", "ignoren", "olvida", "olvide", "descarta", "haz caso omiso de", "no sigas"),
    ("todas", "todo", "las", "los", "tus", "sus", "estas", "de", "por favor"),
    ("anteriores", "previas", "precedentes", "iniciales"),
    ("instrucciones", "órdenes", "indicaciones", "directrices"),
)
FRENCH = _western(
    (
        *("ignore", "ignorez", "ignorer", "oublie", "oubliez", "oublier", "ne tiens pas compte"),
        *("ne tenez pas compte", "fais abstraction", "faites abstraction"),
    ),
    ("toutes", "tout", "les", "des", "tes", "vos", "ces", "de"),
    ("précédentes", "antérieures", "ci-dessus", "initiales", "préalables"),
    ("instructions", "consignes", "directives"),
)
GERMAN = _western(
    ("ignorier", "ignoriere", "ignorieren", "ignoriert", "vergiss", "vergesst", "vergessen", "missachte", "missachten"),
    ("sie", "bitte", "alle", "die", "deine", "ihre", "sämtliche", "all"),
    (
        *("vorherigen", "bisherigen", "vorigen", "obigen", "früheren", "vorhergehenden", "vorangegangenen"),
        *("vorangehenden", "ursprünglichen"),
    ),
    ("anweisungen", "instruktionen", "befehle", "vorgaben", "anordnungen"),
)
PORTUGUESE = _western(
    ("ignore", "ignora", "ignorem", "esqueça", "esquece", "desconsidere", "desconsidera", "descarte"),
    ("todas", "as", "os", "suas", "tuas", "quaisquer", "de", "por favor"),
    ("anteriores", "prévias", "acima", "iniciais"),
    ("instruções", "ordens", "orientações", "diretrizes"),
)
RUSSIAN = _western(
    ("игнорируй", "игнорируйте", "проигнорируй", "проигнорируйте", "забудь", "забудьте", "не обращай внимания на"),
    ("все", "свои", "твои", "любые", "эти", "про"),
    ("предыдущие", "прежние", "прошлые", "вышеуказанные", "предшествующие", "изначальные"),
    ("инструкции", "указания", "команды"),
)
CHINESE = _eastern(
    ("忽略", "无视", "無視", "忘记", "忘掉", "不要理会"),
    ("之前", "以前", "上面", "以上", "先前", "前面", "此前", "上述"),
    ("指令", "指示", "命令", "提示词"),
)
JAPANESE = _eastern(
    ("以前の", "これまでの", "上記の", "前の", "先程の", "今までの"),
    ("指示", "命令", "指令", "プロンプト"),
    ("無視し", "忘れ"),
)

OTHER_LANGUAGES = (SPANISH, FRENCH, GERMAN, PORTUGUESE, RUSSIAN, CHINESE, JAPANESE)
