// No kubeconfig, however broken, gets a secret into an error: 2,000 of them, with known secrets in every position, and
// no error has eight characters of one in a row.
import { expect, test } from "bun:test"
import { randomBytes } from "node:crypto"
import { writeFileSync } from "node:fs"
import { join } from "node:path"
import fc from "fast-check"
import { connect, findSource, messageOf } from "../../operator.ts"
import { ada, base64, folder, never, tidyUp, trusted } from "./connection_kit.ts"

tidyUp()

/** Each is found again by any eight characters in a row. */
const random = () => randomBytes(30).toString("base64url")
const SECRETS = {
  token: random(),
  password: random(),
  argument: random(),
  environment: random(),
  refresh: random(),
  proxy: random(),
  url: random(),
  misplaced: random(),
  key: base64(ada.key),
  plainKey: ada.key.replace(/-----.*-----|\s/g, ""),
}
const pieces = new Set(Object.values(SECRETS).flatMap((secret) => piecesOf(secret)))
function piecesOf(text: string): string[] {
  return Array.from({ length: Math.max(0, text.length - 7) }, (_, i) => text.slice(i, i + 8))
}

const user = {
  token: SECRETS.token,
  password: SECRETS.password,
  "client-certificate-data": base64(ada.cert),
  "client-key-data": SECRETS.key,
  exec: {
    apiVersion: "client.authentication.k8s.io/v1",
    command: "/bin/false",
    args: [`--client-secret=${SECRETS.argument}`, SECRETS.argument],
    env: [{ name: "SECRET", value: SECRETS.environment }],
    installHint: "get it",
    interactiveMode: "Never",
  },
  "auth-provider": {
    name: "oidc",
    config: {
      "client-id": "x",
      "client-secret": SECRETS.refresh,
      "refresh-token": SECRETS.refresh,
      "idp-issuer-url": "x",
    },
  },
}
const whole = {
  apiVersion: "v1",
  kind: "Config",
  "current-context": "here",
  clusters: [
    {
      name: "home",
      cluster: {
        server: "https://127.0.0.1:1",
        "certificate-authority-data": base64(trusted.cert),
        "proxy-url": `http://me:${SECRETS.proxy}@127.0.0.1:1`,
      },
    },
  ],
  contexts: [{ name: "here", context: { cluster: "home", user: "me", namespace: "demo" } }],
  users: [{ name: "me", user }],
}

type Node = { [key: string]: unknown }
/** Everywhere a value or a field can stand, but for the names by which entries are found. */
function places(node: unknown, path: string[] = []): string[][] {
  if (typeof node !== "object" || node === null) return path.at(-1) === "name" && path.length === 3 ? [] : [path]
  const inner = Object.entries(node).flatMap(([key, value]) => places(value, [...path, key]))
  return path.length > 0 ? [path, ...inner] : inner
}
const POSITIONS = places(whole).filter(
  (path) => !/^contexts.0.context.(cluster|user)$|^current-context$/.test(path.join(".")),
)

/** A copy in which a secret stands in place of a value, or of the name of a field. */
function misplace(path: string[], how: "value" | "name" | "beside" | "in a URL"): unknown {
  const copy = structuredClone(whole) as Node
  const parent = path.slice(0, -1).reduce((node, key) => node[key] as Node, copy)
  const last = path.at(-1) ?? ""
  if (how === "value") parent[last] = SECRETS.misplaced
  if (how === "in a URL") parent[last] = `https://x:${SECRETS.url}@127.0.0.1:1`
  if (how === "beside" && !Array.isArray(parent)) parent[SECRETS.misplaced] = "x"
  if (how === "name" && !Array.isArray(parent)) {
    parent[SECRETS.misplaced] = parent[last]
    delete parent[last]
  }
  return copy
}

/** Removes users' fields, so that one way to log in is left, and its error is met. */
function keeping(config: unknown, fields: string[]): unknown {
  const copy = structuredClone(config) as typeof whole
  for (const { user: entry } of Array.isArray(copy.users) ? copy.users : [])
    for (const field of Object.keys(entry ?? {}))
      if (Object.keys(user).includes(field) && !fields.includes(field)) delete (entry as Node)[field]
  return copy
}

/** YAML in blocks, as people write it; `scalar` writes a string. */
function block(node: unknown, scalar: (text: string, indent: string) => string, indent = ""): string {
  if (typeof node !== "object" || node === null) return scalar(String(node), indent)
  const isList = Array.isArray(node)
  const lines = Object.entries(node).map(([key, value]) => {
    const inner = block(value, scalar, `${indent}  `)
    const head = isList ? "-" : `${key}:`
    return `${indent}${head}${typeof value === "object" && value !== null ? `\n${inner}` : ` ${inner}`}`
  })
  return lines.join("\n")
}
const STYLES: Record<string, (config: unknown) => string> = {
  json: (config) => JSON.stringify(config),
  "json in lines": (config) => JSON.stringify(config, null, 2),
  plain: (config) => block(config, (text) => text),
  quoted: (config) => block(config, (text) => JSON.stringify(text)),
  folded: (config) => block(config, (text, indent) => `>-\n${indent}  ${text.replace(/.{30}/g, `$&\n${indent}  `)}`),
  binary: (config) =>
    block(config, (text, indent) => `!!binary |\n${indent}  ${text.replace(/.{30}/g, `$&\n${indent}  `)}`),
}

const SCRAPS = [
  "",
  " ",
  "\n",
  "\t",
  ":",
  ": ",
  "{",
  "}",
  "[",
  "]",
  ",",
  '"',
  "'",
  "|",
  ">",
  "&",
  "*",
  "!",
  "%",
  "@",
  "#",
  "-",
  "---\n",
  "<<: ",
  "\0",
  "\u00ff",
]
const edit = fc.record({
  at: fc.nat(1_000_000),
  remove: fc.constantFrom(0, 0, 1, 1, 2, 9, 80),
  add: fc.constantFrom(...SCRAPS),
})
const broken = fc.record({
  position: fc.constantFrom(...POSITIONS),
  how: fc.constantFrom("value", "name", "beside", "in a URL", "nowhere"),
  fields: fc.constantFrom(
    ...Object.keys(user).map((field) => [field]),
    ["client-certificate-data", "client-key-data"],
    Object.keys(user),
  ),
  style: fc.constantFrom(...Object.keys(STYLES)),
  edits: fc.array(edit, { maxLength: 3 }),
  encoding: fc.constantFrom("utf8", "utf8", "utf8", "latin1", "utf16le"),
})

test("H16 2,000 broken kubeconfigs with secrets in every position: no error has a piece of one", async () => {
  let errors = 0
  const property = fc.asyncProperty(broken, async ({ position, how, fields, style, edits, encoding }) => {
    const config = how === "nowhere" ? whole : misplace(position, how as "value")
    let text = STYLES[style]?.(keeping(config, fields)) ?? ""
    for (const { at, remove, add } of edits) {
      const start = at % (text.length + 1)
      text = text.slice(0, start) + add + text.slice(start + remove)
    }
    const path = join(folder, "broken")
    writeFileSync(path, text, encoding as BufferEncoding)
    const said = await findSource({ KUBECONFIG: path, HOME: folder }, folder)
      .then((source) => connect(source, {}).version(never))
      .catch(messageOf)
    errors++
    expect(piecesOf(said).filter((piece) => pieces.has(piece))).toEqual([])
  })
  await fc.assert(property, { numRuns: 2_000 })
  expect(errors).toBeGreaterThanOrEqual(2_000)
}, 60_000)
