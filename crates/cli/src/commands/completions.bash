# Bash takes : @ and = for ends of words, and COMP_WORDBREAKS is the user's own. They are within words in web:/srv,
# web@before and --project=lab: these words are put together again, and what bash leaves as it stands on the line, in
# front of $2, is cut off the answers.
_clap_complete_arnia() {
    local IFS=$'\013' ends='^[:@=]+$'
    local words=() index=0 typed="" before="" rest=$COMP_LINE begin=0 i word gap
    for i in "${!COMP_WORDS[@]}"; do
        word=${COMP_WORDS[i]}
        gap=${rest%%[![:space:]]*}
        rest=${rest#"$gap"}
        if [[ -z $gap && $i -gt 0 ]] && [[ $word =~ $ends || ${COMP_WORDS[i-1]} =~ $ends ]]; then
            words[${#words[@]}-1]+=$word
        else
            words+=("$word")
            begin=$((${#COMP_LINE} - ${#rest}))
        fi
        if [[ $i -eq $COMP_CWORD ]]; then
            index=$((${#words[@]} - 1))
            if [[ $COMP_POINT -gt $begin ]]; then
                typed=${COMP_LINE:begin:COMP_POINT-begin}
            fi
        fi
        rest=${rest#"$word"}
    done
    # Without the quotation mark that the word begins with.
    if [[ $typed == *"$2" ]]; then
        typed=${typed#[\"\']}
        before=${typed%"$2"}
    else
        typed=$2
    fi
    words[index]=$typed

    local space=true
    if compopt +o nospace 2> /dev/null; then
        space=false
    fi
    COMPREPLY=( $( \
        _CLAP_IFS="$IFS" \
        _CLAP_COMPLETE_INDEX="$index" \
        _CLAP_COMPLETE_COMP_TYPE="$COMP_TYPE" \
        _CLAP_COMPLETE_SPACE="$space" \
        ARNIA_COMPLETE="bash" \
        arnia -- "${words[@]}" \
    ) )
    if [[ $? != 0 ]]; then
        unset COMPREPLY
    elif [[ ${#COMPREPLY[@]} -gt 0 ]]; then
        if [[ $space == false && "${COMPREPLY-}" =~ [=/:]$ ]]; then
            compopt -o nospace
        fi
        COMPREPLY=("${COMPREPLY[@]#"$before"}")
    fi
}
if [[ "${BASH_VERSINFO[0]}" -eq 4 && "${BASH_VERSINFO[1]}" -ge 4 || "${BASH_VERSINFO[0]}" -gt 4 ]]; then
    complete -o nospace -o bashdefault -o nosort -F _clap_complete_arnia arnia
else
    complete -o nospace -o bashdefault -F _clap_complete_arnia arnia
fi
