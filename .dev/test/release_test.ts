// What a release contains besides the program: the notices of everything that is compiled in.
import { expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join, relative } from "node:path"
import { dependencyFolders, notices } from "../notices.ts"

const root = join(import.meta.dir, "../..")
const text = notices()

test("the notices have every package from which the program contains a file", async () => {
  const { metafile } = await Bun.build({ entrypoints: [join(root, "operator.ts")], target: "bun", metafile: true })
  const folders = [...dependencyFolders()].map((folder) => `${relative(root, folder)}/`)
  const foreign = Object.keys(metafile!.inputs).filter((file) => file.includes("node_modules/"))
  expect(foreign.length).toBeGreaterThan(20)
  expect(foreign.filter((file) => !folders.some((folder) => file.startsWith(folder)))).toEqual([])
})

test("the notices of a package have its name, version and the whole text of its licence", () => {
  for (const folder of dependencyFolders()) {
    const { name, version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"))
    expect(text).toContain(`\n${name} ${version} (`)
  }
  expect(text).toContain(readFileSync(join(root, "node_modules/prom-client/LICENSE"), "utf8").trim())
})

test("the notices have Bun's own, and those of the libraries in it", () => {
  expect(text).toContain(`\nBun ${Bun.version} (`)
  for (const library of ["JavaScriptCore", "boringssl", "mimalloc", "llhttp", process.versions.webkit!])
    expect(text).toContain(library)
})
