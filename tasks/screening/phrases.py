"""What indirect prompt injection says: families of phrases, as patterns over folded text (tasks/screening/folding.py).

Reads and writes nothing. Every family names the beginnings its phrases have, and words that one of them must have;
only where those are its pattern is tried. The patterns ask for a whole phrase (a verb, whose instructions, which
ones), because documentation is full of its parts: "ignore previous errors", "you are now ready", "the system prompt".
The core phrase in other languages than English is in other_languages.py.
"""

import re
from dataclasses import dataclass

_GAP = r"[\W_]{1,12}"  # between two words: spaces, line ends, quotes, marks of emphasis


@dataclass(frozen=True)
class Family:
    """Phrases of one kind: how they begin, what they are, and words one of which every phrase has."""

    beginnings: tuple[str, ...]
    pattern: re.Pattern[str]
    needs: tuple[str, ...] = ()


def spaced(*phrases: str) -> re.Pattern[str]:
    """Compile phrases in which a blank stands for any gap between words."""
    return re.compile(r"(?<![^\W_])(?:" + "|".join(phrases).replace(" ", _GAP) + r")(?![^\W_])")


_OBEYING = r"(?:(?:do not|don'?t|stop) (?:follow|obey)(?:ing)?)"
_VERBS = rf"(?:ignor(?:e|ing)|disregard(?:ing)?|forget(?:ting)?|pay no attention to|{_OBEYING})"
_FILLERS = (
    r"(?:(?:all|any|every|each|the|of|these|those|your|my|our|and|other|everything|anything|about|please"
    r"|completely|to) ){0,5}"
)
_NOUNS = r"(?:instructions?|prompts?|directions|directives|guidelines|programming)"
# Of a shop or a shell far more often: only with a verb of obedience, or where all are meant.
_ORDERS = r"(?:commands|orders)"
_EARLIER = (
    r"(?:previous(?:ly)?|prior|above|preceding|earlier|foregoing|initial|original|former)"
    r"(?: (?:given|provided|stated|mentioned|and|or|prior|above|earlier|system|safety|user|ai|chat)){0,3}"
)
OVERRIDE = Family(
    ("ignor", "disregard", "forget", "pay no", "do not ", "don't ", "dont ", "stop ", "override", "bypass", "overrule"),
    spaced(
        rf"{_VERBS} {_FILLERS}{_EARLIER} {_NOUNS}",
        rf"{_OBEYING} {_FILLERS}{_EARLIER} {_ORDERS}",
        rf"{_VERBS} (?:all|any|every) (?:(?:of|the|your|these|those|my|other) ){{0,3}}{_EARLIER} commands",
        rf"(?:{_VERBS} (?:all |any )?(?:of )?(?:the |your |those |these |my )?(?:system )?{_NOUNS}"
        rf"|{_OBEYING} (?:all |any )?(?:of )?(?:the |your |those |these |my )?(?:system )?{_ORDERS}) "
        r"(?:above|before this|that came before|you (?:were|have|had|received|got)|given to you"
        r"|provided (?:above|earlier)|from the (?:system|user|developer))",
        rf"{_VERBS} (?:all |any )?(?:of )?your (?:other |safety |system |current |own )?"
        r"(?:instructions|prompt|guidelines|rules|directives|programming|training|restrictions)",
        r"(?:ignore|disregard|forget) (?:everything|anything|all|whatever|what) (?:that )?(?:you|i|the user) "
        r"(?:(?:have|had|has|were|was|been|are|just|previously) ){0,3}(?:told|said|asked|instructed|learned|know)"
        r"(?! about (?!your ))",  # "forget everything you know about pointers" begins a lesson
        r"(?:override|bypass|overrule) (?:(?:all|any|of|the) ){0,3}your (?:[^\W_]+ ){0,2}"
        r"(?:instructions|prompt|guidelines|programming|safeguards|restrictions)",
    ),
)
_ASSISTANT = r"(?:assistant|ai|chatbot|language model|llm)"
PERSONA = Family(
    ("you are now", "from now on", "pretend", "act as", "enter ", "activate", "switch to"),
    spaced(
        r"you are now (?:in |acting as )?(?:an?|the|my|called|named|no longer) (?:[^\W_]+ ){0,4}"
        rf"(?:{_ASSISTANT}|hacker|persona|jailbreak|(?:dan|god|jailbreak|unrestricted) mode)",
        r"you are now (?:called |named )?"
        r"(?:dan|jailbroken|uncensored|unfiltered|unrestricted|free (?:from|of) (?:all|any|your))",
        r"from now on,? you (?:are (?:an?|the|my|no longer) |(?:will|must|should|shall|can|may) "
        rf"(?:(?:only|always|never|not) )?)(?:[^\W_]+ ){{0,2}}(?:act as|pretend|obey|{_ASSISTANT}|ignore all"
        r"|speak (?:only|like)|reply (?:only|with)|respond (?:only|with|as))",
        r"pretend (?:to be|you are|you're|that you are) (?:[^\W_]+ ){0,4}"
        rf"(?:{_ASSISTANT}|without (?:any )?(?:rules|restrictions)|unrestricted)",
        r"act as (?:an? )?(?:unrestricted|uncensored|unfiltered|jailbroken)",
        r"act as (?:if|though) you (?:have|had) no (?:rules|restrictions|guidelines|limits|instructions)",
        r"(?:enter|activate|switch to) (?:dan|jailbreak|god|unrestricted) mode",
    ),
)
LEAK = Family(
    (
        *("reveal", "print", "show", "repeat", "output", "display", "leak", "disclose", "expose", "recite", "give"),
        *("tell", "send", "write", "new system", "updated system", "real system", "actual system", "end of"),
        *("start of", "beginning of", "system prompt override", "system override"),
    ),
    spaced(
        r"(?:reveal|print|show|repeat|output|display|leak|disclose|expose|recite|give|tell|send|write)"
        r"(?: me| us)?(?: out| back)? (?:(?:all|of|the|entire|full|whole|complete|exact|contents|text|and) ){0,5}"
        r"your (?:[^\W_]+ ){0,2}(?:system (?:prompt|message|instructions)|(?:initial|hidden) (?:prompt|instructions)"
        r"|secret instructions|developer message)",
        r"(?:repeat|print|output|recite) (?:all |the |of ){0,3}(?:words|text|everything|instructions|prompt) above "
        r"(?:verbatim|word for word|exactly)",
        r"(?:new|updated|real|actual) system (?:prompt|instructions)(?=\s*[:=])",
        r"(?:end|start|beginning) of (?:the )?system (?:prompt|instructions)",
        r"system (?:prompt )?override(?=\s*[:=!])",
    ),
    needs=("prompt", "instructions", "message", "verbatim", "word for word", "above exactly", "system override"),
)
_NEVER = r"(?:do not|don'?t|never|must not)(?: ever)?"
_THIS = r"(?:this|these|that you|the above)"
_USER = r"(?:the|your) users?"
_END = r"(?=[\"')*_]*(?:[.!?;,:]|\s*\Z|\s*\n\s*\n))"  # of a clause
SECRECY = Family(
    ("do not ", "don't ", "dont ", "never ", "must not "),
    # What is said of this text, or without saying what: "do not tell the user that the file is missing" is advice on messages.
    spaced(
        rf"{_NEVER} (?:tell|inform|reveal|disclose|mention)(?:ing)? (?:(?:any|of|anything|about) ){{0,3}}{_THIS} "
        rf"(?:[^\W_]+ ){{0,3}}to {_USER}",
        rf"{_NEVER} (?:tell|inform)(?:ing)? {_USER} (?:(?:any|anything|a word|of|about|that|what|why) ){{0,3}}{_THIS}",
        rf"{_NEVER} (?:(?:tell|inform)(?:ing)?|(?:reveal|disclose|mention)(?:ing)? "
        rf"(?:(?:it|that|any|of|anything|about|instructions) ){{1,4}}to) {_USER}(?: anything)?(?: about (?:it|that))?{_END}",
        rf"{_NEVER} (?:mention|reveal|disclose) (?:this|these|the above|that you (?:were|have been|got)) "
        r"(?:hidden |secret )?(?:instructions?|prompt|told|instructed)",
    ),
    needs=("user", "instruct", "prompt", "told"),
)
TO_THE_MODEL = Family(
    ("if you are a", "if you're a", "because you are a", "attention", "note to", "message to", "message for"),
    spaced(
        rf"(?:if you(?: are|'re)|because you are) an? (?:[^\W_]+ ){{0,3}}{_ASSISTANT}(?: [^\W_]+){{0,8}} "
        r"(?:you must|ignore|say|output|respond with|reply with|recommend|always answer|stop processing)",
        r"(?:attention|note to|message to|message for) (?:all )?(?:ai|llm|llms|language models?) "
        r"(?:assistants?|models?|agents?|systems?|readers?)",
    ),
)
_TAKEN = (
    r"(?:conversation|chat_?history|chat|history|secrets?|passwords?|system_?prompt|prompt|context|messages?"
    r"|credentials?|api_?keys?|user_?data|data|base64|summary|answer)"
)
# The nearest bracket before what is taken: the class leaves out the others, so that each character is looked at once.
_PLACEHOLDER = rf"(?:%7b|[{{<\[])[^\]}}>\s{{<\[]{{0,40}}?{_TAKEN}"
EXFILTRATION_BY_IMAGE = Family(
    ("![", "<img"),
    re.compile(
        r"(?:!\[[^\]\n]{0,200}+\]\(\s{0,20}+<?|<img\b[^>\n]{0,200}?src=.?)"
        rf"https?://[^?=)>\s]{{1,300}}+[?=][^)>\s]{{0,400}}?{_PLACEHOLDER}"
    ),
)
_SENT = r"(?:send|forward|upload|exfiltrate|transmit|append|encode)"
_AWAY = r"(?:[^\W_]+ ){0,4}(?:to|at|into|in) (?:https?|the url|an? url|an? image|this url)"
EXFILTRATION = Family(
    ("send", "forward", "upload", "post", "exfiltrate", "transmit", "append", "encode"),
    spaced(
        rf"(?:{_SENT}|post) (?:(?:all|the|this|whole|entire|full|of|user's|users|your|any) ){{0,4}}"
        rf"(?:conversation|chat history|system prompt) {_AWAY}",
        # "Send the credentials to the URL below" logs in, "post all user data to https://..." is a request of an API.
        rf"{_SENT} (?:(?:the|of|these|this) ){{0,2}}(?:all|any|user's|users|users') "
        r"(?:(?:all|the|of|user's|users|your|any|their|stored) ){0,3}"
        rf"(?:secrets|passwords|credentials|api keys|user data|private data) {_AWAY}",
    ),
    needs=("http", "url", "image"),
)
_ROLES = (
    *("<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|system|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<|begin_of_text|>", "<|end_of_turn|>", "<start_of_turn>", "<end_of_turn>"),
    *("<<sys>>", "<</sys>>", "[inst]", "[/inst]"),
)
ROLE_MARKER = Family(_ROLES, re.compile("|".join(map(re.escape, _ROLES))), needs=("<|", "_of_turn>", "sys>>", "inst]"))
ROLE_HEADING = Family(("### system", "###system"), re.compile(r"(?m:^)#{3} ?system(?: prompt)?:"))

ENGLISH = (
    *(OVERRIDE, PERSONA, LEAK, SECRECY, TO_THE_MODEL, EXFILTRATION_BY_IMAGE, EXFILTRATION),
    *(ROLE_MARKER, ROLE_HEADING),
)
