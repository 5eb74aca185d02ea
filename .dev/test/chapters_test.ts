// operator.ts is read from top to bottom: a chapter uses only those before it, and only one place reads the clock or
// rolls dice. No line of any source file is above 120 columns.
import { describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { Glob } from "bun"

const source = readFileSync(join(import.meta.dir, "../../operator.ts"), "utf8")

/** Comments and the text of strings blanked, line for line; code inside `${}` stays. */
export function codeOf(text: string): string {
  const transpiler = /\/\*[\s\S]*?\*\/|\/\/[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'/g
  return text.replace(transpiler, (match) => match.replace(/[^\n]/g, " "))
}

/** The chapters of a file: title, text, and the names that it declares at top level. */
export function chaptersOf(text: string) {
  const parts = text.split(/^\/\/ ─+ (\d+ .*?) ─+$/m).slice(1)
  return Array.from({ length: parts.length / 2 }, (_, i) => {
    const code = codeOf(parts[2 * i + 1] ?? "")
    const declaration = /^(?:export )?(?:async )?(?:function\*?|class|const|interface|type) (\w+)/gm
    return { title: parts[2 * i] ?? "", code, names: [...code.matchAll(declaration)].map(([, name]) => name as string) }
  })
}

/** What a chapter takes from a later one. */
export function violationsIn(text: string): string[] {
  const chapters = chaptersOf(text)
  return chapters.flatMap(({ title, code }, i) =>
    chapters
      .slice(i + 1)
      .flatMap((later) =>
        later.names
          .filter((name) => new RegExp(`(?<![\\w.$])${name}(?![\\w$]|:(?! ))`).test(code))
          .map((name) => `${title} uses ${name} of ${later.title}`),
      ),
  )
}

describe("operator.ts", () => {
  test("has its chapters in order", () => {
    expect(chaptersOf(source).map(({ title }) => Number.parseInt(title, 10))).toEqual(
      chaptersOf(source).map((_, i) => i + 1),
    )
  })

  test("has them all in the list at its beginning", () => {
    const list = source.slice(0, source.indexOf("Chapters 2 to 7")).replaceAll(/\s+\*\s+/g, " ")
    expect(list).toContain(
      chaptersOf(source)
        .map(({ title }) => title)
        .join(" · "),
    )
  })

  test("a chapter uses only earlier ones", () => {
    expect(violationsIn(source)).toEqual([])
  })

  test("a call of a later chapter is found", () => {
    const text = "// ── 1 One ──\nexport const a = () => b()\n// ── 2 Two ──\nfunction b() {}\n"
    expect(violationsIn(text)).toEqual(["1 One uses b of 2 Two"])
  })

  test.each(["Date.now", "performance.now", "Math.random", "setTimeout"])("%s occurs in one place only", (name) => {
    const code = codeOf(source)
    const clock = /const systemClock[\s\S]*?\n\}\n/.exec(code)?.[0] ?? ""
    expect(clock).toContain(name)
    expect(code.replace(clock, "")).not.toContain(name)
  })

  const root = join(import.meta.dir, "../..")
  const globs = ["*.{ts,html}", "Dockerfile", ".ci/run", ".dev/**/*.{ts,sh}"].map((pattern) => new Glob(pattern))
  const sources = globs.flatMap((glob) => [...glob.scanSync({ cwd: root, dot: true })])
  test.each(sources)("%s has no line above 120 columns", (file) => {
    const lines = readFileSync(join(root, file), "utf8").split("\n")
    expect(lines.flatMap((line, i) => (line.length > 120 ? [`${file}:${i + 1}`] : []))).toEqual([])
  })
})

test("the files at the top level are those of the layout, and those of the commands", () => {
  const top = new Glob("*").scanSync({ cwd: join(import.meta.dir, "../.."), onlyFiles: true })
  expect([...top].filter((name) => /\.(ts|html)$/.test(name)).sort()).toEqual([
    "cli.ts",
    "dashboard.html",
    "operator.ts",
    "operator_test.ts",
  ])
})
