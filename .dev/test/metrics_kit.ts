// Prometheus' text format, read and checked: what `promtool check metrics` looks at, as far as it concerns us.

export type Sample = { name: string; labels: string; value: number }

/** The samples of a text in the exposition format. Throws where a line is none. */
export function parse(text: string): Sample[] {
  return text
    .split("\n")
    .filter((line) => line !== "" && !line.startsWith("#"))
    .map((line) => {
      const match = /^([a-zA-Z_:][\w:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)$/.exec(line)
      if (!match || Number.isNaN(Number(match[3]))) throw new Error(`no sample: ${line}`)
      return { name: match[1]!, labels: match[2] ?? "", value: Number(match[3]) }
    })
}

const NO_BASE_UNIT = /_(milliseconds|ms|minutes|hours|days|kilobytes|mebibytes|megabytes|bits|percent|celsius_f)(_|$)/

/** What is wrong with the names, types and units of a text. */
export function lint(text: string): string[] {
  const told = (word: string) =>
    new Map([...text.matchAll(new RegExp(`^# ${word} (\\S+) (.+)$`, "gm"))].map(([, name, rest]) => [name!, rest!]))
  const [help, type, samples] = [told("HELP"), told("TYPE"), parse(text)]
  const family = (name: string) => (type.has(name) ? name : name.replace(/_(bucket|sum|count)$/, ""))
  const keys = samples.map(({ name, labels }) => `${name}{${labels}}`)
  return [
    ...[...new Set(samples.map(({ name }) => family(name)))].flatMap((name) => [
      ...(help.has(name) ? [] : [`${name} has no HELP`]),
      ...(type.has(name) ? [] : [`${name} has no TYPE`]),
      ...((type.get(name) === "counter") === name.endsWith("_total")
        ? []
        : [`${name}: _total stands on counters, and only there`]),
      ...(NO_BASE_UNIT.test(name) ? [`${name} has a unit that is no base unit`] : []),
      ...(/^[a-z][a-z0-9_]*$/.test(name) ? [] : [`${name} is not written in snake_case`]),
      ...(/_(gauge|counter|histogram)(_|$)/.test(name) ? [`${name} has its type in its name`] : []),
    ]),
    ...keys.filter((key, i) => keys.indexOf(key) !== i).map((key) => `${key} stands twice`),
  ]
}
