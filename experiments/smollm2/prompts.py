"""What both sides are asked: 20 questions, and the texts whose logits are compared."""

QUESTIONS = (
    "What is the capital of France?",
    "What is 17 + 25? Think step by step.",
    "Write a short poem about the sea.",
    "Explain in two sentences why the sky is blue.",
    "List five fruits that are red.",
    "Translate 'good morning' into Spanish, German and Italian.",
    "Who wrote Romeo and Juliet, and when?",
    "Write a Python function that reverses a string.",
    "What happens when water freezes?",
    "Give me three tips for sleeping better.",
    "A train travels 60 miles in 1.5 hours. What is its average speed?",
    "Summarise the story of Cinderella.",
    "What is the difference between a virus and a bacterium?",
    "Name the planets of the solar system in order.",
    "Write an email that asks a colleague to move a meeting to Friday.",
    "How do I boil an egg?",
    "What does the word 'ephemeral' mean? Use it in a sentence.",
    "If all cats are mammals and Tom is a cat, what is Tom?",
    "Tell me a joke about a programmer.",
    "What year did people first land on the Moon, and who were they?",
)
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps until the evening comes.",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n",
    "In 1969, after 4 days, 6 hours and 45 minutes, two people stood on the Moon: 1 + 1 = 2.",
    "Ünïcode — naïve café, 東京, עברית, 👩‍👩‍👧: letters that most vocabularies have no tokens for.",
)
NEW_TOKENS = 96
