# Sourced by the scripts beside it and by CI: which Pythons the project is held to, and where they are.
# shellcheck shell=sh disable=SC2034  # used where it is sourced

pythons='3.11 3.12 3.13'

# Prints the command of a Python by its version, like 3.13: from the PATH, or one that pyenv keeps.
python_named() {
    for python in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        # pyenv has a name on the PATH for each version that it keeps, which only runs where that version is chosen.
        if [ "$(python_version "$python" 2>/dev/null)" = "$1" ]; then
            echo "$python"
            return
        fi
    done
    return 1
}

python_version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}
