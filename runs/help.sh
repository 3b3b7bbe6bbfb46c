# `--help` prints the comment at a script's head, and does nothing else; sourced by the others.
if [[ ${1-} == -h || ${1-} == --help ]]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit
fi
