// `bun run build`: the program as one file for each platform, dist/flickr-immich-k8s-sync-operator-PLATFORM, and the
// notices of all that is in it, dist/THIRD-PARTY-NOTICES.txt. With names of platforms it builds only those:
// `bun run build linux-x64`. The Bun inside comes from its npm package, the same on every machine whatever Bun runs
// this: npm checks it against the registry's own checksum, and keeps it in npm's cache. Needs: npm (it comes with
// Node.js), tar.
import { mkdir, mkdtemp, rm, stat } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { $ } from "bun"
import { notices } from "./notices.ts"

const root = join(import.meta.dir, "..")
const platforms = [
  { name: "linux-x64", npm: "@oven/bun-linux-x64", file: "bun" },
  { name: "linux-arm64", npm: "@oven/bun-linux-aarch64", file: "bun" },
  { name: "darwin-arm64", npm: "@oven/bun-darwin-aarch64", file: "bun" },
  { name: "darwin-x64", npm: "@oven/bun-darwin-x64", file: "bun" },
  { name: "windows-x64", npm: "@oven/bun-windows-x64", file: "bun.exe" },
] as const
type Platform = (typeof platforms)[number]
const mebibytes = async (file: string) => `${((await stat(file)).size / 2 ** 20).toFixed(1)} MiB`

/** Fetches the platform's package and unpacks its `bun`. */
async function runtime({ npm, file }: Platform, folder: string): Promise<string> {
  await mkdir(folder)
  await $`npm pack --silent --prefer-offline ${npm}@${Bun.version}`.cwd(folder).quiet()
  await $`tar xzf ${(await Array.fromAsync(new Bun.Glob("*.tgz").scan(folder)))[0]!}`.cwd(folder)
  return join(folder, "package/bin", file)
}

async function build(platform: Platform, work: string): Promise<void> {
  const path = join(root, `dist/flickr-immich-k8s-sync-operator-${platform.name}`)
  const outfile = platform.file === "bun.exe" ? `${path}.exe` : path
  await rm(outfile, { force: true })
  await Bun.build({
    entrypoints: [join(root, "operator.ts")],
    target: "bun",
    minify: true,
    sourcemap: "linked",
    bytecode: true,
    compile: {
      target: `bun-${platform.name}`,
      executablePath: await runtime(platform, join(work, platform.name)),
      outfile,
      autoloadDotenv: false,
      autoloadBunfig: false,
    },
  })
  // The binary has it inside as well.
  for (const map of [`${outfile}.map`, `${path}.map`]) await rm(map, { force: true })
  console.log(`${outfile.slice(root.length + 1)}  ${await mebibytes(outfile)}`)
}

const wanted = process.argv.slice(2)
const unknown = wanted.filter((name) => !platforms.some((platform) => platform.name === name))
if (unknown.length > 0) {
  console.error(`no build for ${unknown.join(", ")}: there are ${platforms.map(({ name }) => name).join(", ")}`)
  process.exit(2)
}
const work = await mkdtemp(join(tmpdir(), "build-"))
try {
  await Bun.write(join(root, "dist/THIRD-PARTY-NOTICES.txt"), notices())
  await Promise.all(
    platforms
      .filter(({ name }) => wanted.length === 0 || wanted.includes(name))
      .map((platform) => build(platform, work)),
  )
} finally {
  await rm(work, { recursive: true, force: true })
}
