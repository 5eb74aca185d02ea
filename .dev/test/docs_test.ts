// The pages: their links lead somewhere, and what they list is complete.
import { expect, test } from "bun:test"
import { existsSync, readFileSync } from "node:fs"
import { dirname, join, relative } from "node:path"
import project from "../../package.json" with { type: "json" }

const root = join(import.meta.dir, "../..")
const read = (file: string) => readFileSync(join(root, file), "utf8")
const scan = (pattern: string) =>
  [...new Bun.Glob(pattern).scanSync({ cwd: root, dot: true })].filter((file) => !/node_modules|^dist\//.test(file))
const pages = scan("**/*.md").toSorted()

/** A page without its code, where brackets are no links and # is no heading. */
const prose = (page: string) => read(page).replace(/^```[\s\S]*?^```$/gm, "")
/** The anchors that GitHub gives to a page's headings. */
function anchors(page: string): string[] {
  const headings = [...prose(page).matchAll(/^#+ (.*)$/gm)].map(([, text]) => text!)
  return headings.map((text) =>
    text
      .toLowerCase()
      .replace(/[^\p{L}\p{N}\s_-]/gu, "")
      .replaceAll(" ", "-"),
  )
}

test("there are the pages that a reader is sent to", () => {
  for (const page of ["README.md", "deploy/README.md", ".dev/README.md", ".github/CHANGELOG.md", ".github/SECURITY.md"])
    expect(pages).toContain(page)
})

test.each(pages)("every link of %s leads to a file, and to a heading that it has", (page) => {
  const targets = [
    ...prose(page)
      .replace(/`[^`]*`/g, "")
      .matchAll(/\]\(([^)\s]+)\)/g),
  ].map(([, target]) => target!)
  const isBroken = (target: string) => {
    if (/^https:\/\//.test(target)) return false
    const [path = "", anchor] = target.split("#")
    const file = path === "" ? page : relative(root, join(root, dirname(page), path))
    return !existsSync(join(root, file)) || (anchor !== undefined && !anchors(file).includes(anchor))
  }
  expect(targets.filter(isBroken)).toEqual([])
})

test("every page can be reached from the README by links", () => {
  const reached = new Set(["README.md"])
  for (const page of reached)
    for (const [, path] of prose(page).matchAll(/\]\(([^)\s#]+\.md)(?:#[^)]*)?\)/g))
      if (!path!.startsWith("https:")) reached.add(relative(root, join(root, dirname(page), path!)))
  expect(pages.filter((page) => !reached.has(page))).toEqual([])
})

test("README.md in .dev names every folder, script and variable there is", () => {
  const text = read(".dev/README.md")
  const folders = new Set(scan(".dev/*/*").map((file) => `\`${file.split("/")[1]}/\``))
  const scripts = Object.keys(project.scripts)
    .filter((name) => name !== "start")
    .map((name) => `bun run ${name}`)
  const sources = [...scan(".dev/**/*.{ts,sh}")].map(read).join("\n")
  const variables = [...sources.matchAll(/process\.env\.([A-Z]\w+)|\$\{((?:KUBE|ETCD|E2E)\w*):-/g)].map(
    (m) => m[1] ?? m[2]!,
  )
  const wanted = new Set([...folders, ...scripts, ...variables])
  const known = ["PATH", "HTTPS_PROXY", "HTTP_PROXY", "NODE_TLS_REJECT_UNAUTHORIZED"] // of every program
  expect([...wanted].filter((word) => !known.includes(word) && !text.includes(word))).toEqual([])
})

test("the README has at most 150 lines", () => {
  expect(read("README.md").trimEnd().split("\n").length).toBeLessThanOrEqual(150)
})

test("the changelog begins with this version", () => {
  expect(/^## (\S+)/m.exec(read(".github/CHANGELOG.md"))?.[1]).toBe(project.version)
})

test("every image that a page names has this version", () => {
  const images = pages.flatMap((page) => [...read(page).matchAll(/flickr-immich-k8s-sync-operator:(\d\S*)/g)])
  expect(images.length).toBeGreaterThan(3)
  expect(images.map(([, tag]) => tag).filter((tag) => tag !== project.version)).toEqual([])
})

test("every id in the name of a test is a report that reports.md lists", () => {
  const listed = new Set([...read(".github/docs/reports.md").matchAll(/^\| ([A-Z]\d\d) \|/gm)].map(([, id]) => id!))
  const tests = [...scan("*_test.ts"), ...scan(".dev/*/*_test.ts")].map(read).join("\n")
  const named = [...tests.matchAll(/["`](?:[^"`\n]*[ (])?([A-J]\d\d)\b(?=[^"`\n]*["`])/g)].map(([, id]) => id!)
  expect(new Set(named).size).toBeGreaterThan(40)
  expect([...new Set(named)].filter((id) => !listed.has(id))).toEqual([])
})

test("every report that reports.md lists is checked somewhere, or the page says why not", () => {
  const rows = [...read(".github/docs/reports.md").matchAll(/^\| ([A-Z]\d\d) \| (.*?) \|/gm)]
  const code = ["operator_test.ts", ...scan(".dev/*/*.ts")]
    .filter((file) => !file.endsWith("docs_test.ts"))
    .map(read)
    .join("\n")
  const isOpen = ([, id, fault]: RegExpExecArray) =>
    !new RegExp(`\\b${id}\\b`).test(code) && !/\((not applicable|cannot be prevented|documented|the image)/.test(fault!)
  expect(rows.filter(isOpen).map(([, id]) => id)).toEqual([])
})
