// `bun .dev/notices.ts FILE`: the notices of everything that is compiled into the program, for image and release: each
// npm package that it depends on, with its licence's text, and Bun with what it bundles. Throws where a notice is
// missing.
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { dirname, join } from "node:path"

type Package = { name: string; version: string; license?: string; dependencies?: Record<string, string> }

const root = join(import.meta.dir, "..")
const readPackage = (folder: string) => JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as Package

/** Where a package that `from` depends on is installed: in its own node_modules, or in those of a folder above. */
function folderOf(name: string, from: string): string | undefined {
  const folder = join(from, "node_modules", name)
  if (existsSync(folder)) return folder
  return from === root || from === dirname(from) ? undefined : folderOf(name, dirname(from))
}

/** The folders of all packages that the program depends on, directly or not. */
export function dependencyFolders(from = root, seen = new Set<string>()): Set<string> {
  for (const name of Object.keys(readPackage(from).dependencies ?? {})) {
    const folder = folderOf(name, from)
    if (folder === undefined) throw new Error(`${name}, which ${from} depends on, is not installed: run bun install`)
    if (seen.has(folder)) continue
    seen.add(folder)
    dependencyFolders(folder, seen)
  }
  return seen
}

function packageNotice(folder: string): string {
  const { name, version, license } = readPackage(folder)
  const files = readdirSync(folder).filter((file) => /^(un)?licen[cs]e|^copying|^notice/i.test(file))
  if (files.length === 0) throw new Error(`${name} ${version} (${license}) has no file with its licence`)
  const texts = files.toSorted().map((file) => readFileSync(join(folder, file), "utf8").trim())
  return `${name} ${version} (${license})\n\n${texts.join("\n\n")}`
}

/** Parts that Bun names in process.versions and not in the page about its licences, or there by another name. */
const BUN_PARTS: Record<string, string> = {
  node: "Node.js' JavaScript modules: MIT, https://github.com/nodejs/node/blob/main/LICENSE",
  llhttp: "llhttp: MIT, https://github.com/nodejs/llhttp/blob/main/LICENSE",
  zig: "Zig's standard library: MIT, https://github.com/ziglang/zig/blob/master/LICENSE",
  lolhtml: "lol-html: see below",
  lshpack: "ls-hpack: see below",
  ares: "c-ares: see below",
  uv: "libuv: see below",
  unicode: "Unicode data: see libicu below",
  openssl: "BoringSSL, by the name of what it replaces: see below",
  bun: "", // the page itself
  v8: "", // a version that Bun only claims, as it does for the three below
  modules: "",
  napi: "",
  typescript: "",
}

/** What Bun says of its own licence and of those of its parts, for exactly the version that is compiled in. */
function bunNotice(): string {
  const types = folderOf("bun-types", root)
  if (types === undefined || readPackage(types).version !== Bun.version)
    throw new Error(`the licences of Bun ${Bun.version} are in bun-types ${Bun.version}, which is not installed`)
  const page = readFileSync(join(types, "docs/project/license.mdx"), "utf8").replace(/^---[\s\S]*?---\n/, "")
  const parts = Object.entries(process.versions)
  const unknown = parts.filter(([name]) => !(name in BUN_PARTS) && !page.toLowerCase().includes(name.toLowerCase()))
  if (unknown.length > 0) throw new Error(`no licence is known of these parts of Bun: ${unknown.join("; ")}`)
  const more = parts.flatMap(([name, version]) => (BUN_PARTS[name] ? [`- ${BUN_PARTS[name]} (${version})`] : []))
  const title = `Bun ${Bun.version} (https://github.com/oven-sh/bun, WebKit ${process.versions.webkit})`
  return `${title}\n\n${[...more, page.trim()].join("\n")}`
}

export function notices(): string {
  const packages = [...dependencyFolders()].map(packageNotice).toSorted()
  const rule = `\n\n${"-".repeat(80)}\n\n`
  return `${["Software that is part of this program, and its licences.", bunNotice(), ...packages].join(rule)}\n`
}

if (import.meta.main) await Bun.write(process.argv[2] ?? "/dev/stdout", notices())
