"""The built-in demonstrations: one recipe each in a small world made for it, measured against the truth.

`bash scripts/demo.sh [zutis|namedmask] [--output DIR] [key=value ...]`
"""
