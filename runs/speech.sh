# The arguments MANIFEST AUDIO_ENCODER TEXT_ENCODER OUT as full paths, then the checkout; sourced by the
# scripts that train on recordings.
manifest=$(realpath "${1:?give the manifest}")
audio=$(realpath "${2:?give the folder of the audio encoder}")
text=$(realpath "${3:?give the folder of the text encoder}")
out=$(realpath -m "${4:?give a folder for the results}")
cd "$(dirname "$0")/.."
