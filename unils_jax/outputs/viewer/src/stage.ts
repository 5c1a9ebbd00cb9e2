// The heads in 3D: one canvas behind a grid of tiles, one camera for all of them.
import {
  BufferAttribute,
  BufferGeometry,
  Color,
  DirectionalLight,
  DynamicDrawUsage,
  HemisphereLight,
  Mesh,
  MeshPhysicalMaterial,
  MeshStandardMaterial,
  PerspectiveCamera,
  Scene,
  SRGBColorSpace,
  Vector3,
  WebGLRenderer,
} from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import { type HeadArrays, Poser } from "./pose";

const FIELD_OF_VIEW = 22; // degrees, vertical
const LONG_S = 0.06; // between two pictures

/** One head in its own scene, shown in the tile of the page's grid that is handed in. */
export class Figure {
  readonly scene = new Scene();
  readonly poser: Poser;
  private readonly geometry = new BufferGeometry();

  constructor(
    head: HeadArrays,
    palette: number,
    readonly tile: HTMLElement,
  ) {
    this.poser = new Poser(head);
    const { geometry, poser } = this;
    for (const [name, array] of [
      ["position", poser.points],
      ["normal", poser.normals],
    ] as const) {
      geometry.setAttribute(name, new BufferAttribute(array, 3).setUsage(DynamicDrawUsage));
    }
    const size = 3 * head.numVertices;
    const first = (palette % (head.colors.length / size)) * size;
    const color = new Color();
    const linear = new Float32Array(size);
    for (let i = 0; i < size; i += 3) {
      const [r, g, b] = head.colors.subarray(first + i, first + i + 3);
      color.setRGB(r! / 255, g! / 255, b! / 255, SRGBColorSpace).toArray(linear, i);
    }
    geometry.setAttribute("color", new BufferAttribute(linear, 3));
    this.order(head);
    const skin = new MeshStandardMaterial({ vertexColors: true, roughness: 0.62 });
    const eyes = new MeshPhysicalMaterial({ vertexColors: true, roughness: 0.12, clearcoat: 1, clearcoatRoughness: 0.05 });
    const mesh = new Mesh(geometry, [skin, eyes]);
    mesh.frustumCulled = false;
    this.scene.add(mesh, new HemisphereLight(0xffffff, 0x6a5a52, 1.15));
    for (const [power, x, y, z] of [
      [2.2, -0.5, 0.55, 0.85],
      [0.5, 0.8, 0.1, 0.6],
      [0.5, 0.8, 0.5, -0.7],
    ] as const) {
      const light = new DirectionalLight(0xffffff, power);
      light.position.set(x, y, z);
      this.scene.add(light);
    }
  }

  /** Faces with the shining ones last, as two groups. */
  private order(head: HeadArrays): void {
    const dull: number[] = [];
    const shining: number[] = [];
    for (let f = 0; f < head.faces.length; f += 3) {
      const corners = head.faces.subarray(f, f + 3);
      (head.gloss[corners[0]!]! > 0.5 ? shining : dull).push(...corners);
    }
    this.geometry.setIndex([...dull, ...shining]);
    this.geometry.addGroup(0, dull.length, 0);
    this.geometry.addGroup(dull.length, shining.length, 1);
  }

  pose(motion: Float32Array): void {
    this.poser.pose(motion);
    this.geometry.attributes.position!.needsUpdate = true;
    this.geometry.attributes.normal!.needsUpdate = true;
  }
}

/** Whether the browser draws 3D without a graphics card. */
function drawsInSoftware(): boolean {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("webgl2");
  const names = context?.getExtension("WEBGL_debug_renderer_info");
  const name = context && names ? String(context.getParameter(names.UNMASKED_RENDERER_WEBGL)) : "";
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return /swiftshader|llvmpipe|softpipe|software|basic render/i.test(name);
}

export class Stage {
  private readonly renderer: WebGLRenderer;
  private readonly camera = new PerspectiveCamera(FIELD_OF_VIEW, 1, 0.05, 10);
  private readonly controls: OrbitControls;
  private readonly home: Vector3;
  private detail = 1; // of the screen's pixels, per side

  /**
   * Throws where the browser has no WebGL. `changed` is called when the view was moved. With `soon` pictures matter less
   * than their time: edges are rough where no graphics card smooths them.
   */
  constructor(
    element: HTMLElement,
    private readonly canvas: HTMLCanvasElement,
    private readonly head: HeadArrays,
    private readonly figures: Figure[],
    changed: () => void,
    soon = false,
  ) {
    const antialias = !(soon && drawsInSoftware());
    this.renderer = new WebGLRenderer({ canvas, antialias, alpha: true, preserveDrawingBuffer: true });
    this.renderer.setScissorTest(true);
    const [x, y] = head.data.centre;
    this.home = new Vector3(x, y, (1.08 * head.data.half) / Math.tan((FIELD_OF_VIEW * Math.PI) / 360) + 0.06);
    this.controls = new OrbitControls(this.camera, element);
    this.controls.target.set(x, y, 0);
    this.controls.minDistance = 0.3;
    this.controls.maxDistance = 3;
    this.controls.addEventListener("change", changed);
    this.reset();
  }

  /** Looks from the front again. */
  reset(): void {
    this.camera.position.copy(this.home);
    this.controls.update();
  }

  /** While it plays, coarser pictures where `seconds` between two of them are too many, so that lips stay in time. */
  pace(seconds: number | null): void {
    if (seconds === null) this.detail = 1;
    else if (seconds > LONG_S) {
      // By the area that could be drawn in time, but for one long pause alone by half at most.
      const share = Math.max(0.5, Math.min(0.8, Math.sqrt(LONG_S / seconds)));
      this.detail = Math.max(0.3, this.detail * share);
    }
  }

  draw(): void {
    const { canvas, renderer } = this;
    const box = canvas.getBoundingClientRect();
    const ratio = Math.min(window.devicePixelRatio, 2) * this.detail;
    if (canvas.width !== Math.floor(box.width * ratio) || canvas.height !== Math.floor(box.height * ratio)) {
      renderer.setPixelRatio(ratio);
      renderer.setSize(box.width, box.height, false);
    }
    for (const figure of this.figures) {
      const tile = figure.tile.getBoundingClientRect();
      if (!tile.width || !tile.height) continue;
      const place = [tile.left - box.left, box.bottom - tile.bottom, tile.width, tile.height] as const;
      renderer.setViewport(...place);
      renderer.setScissor(...place);
      this.frame(tile);
      renderer.render(figure.scene, this.camera);
    }
  }

  private frame(tile: DOMRect): void {
    this.camera.aspect = tile.width / tile.height;
    // A tile narrower than a head is high shows the head whole all the same.
    const narrow = Math.max(1, 0.78 / this.camera.aspect);
    this.camera.fov = (Math.atan(Math.tan((FIELD_OF_VIEW * Math.PI) / 360) * narrow) * 360) / Math.PI;
    this.camera.updateProjectionMatrix();
  }

  /** Where a figure's lips are on the page, in CSS pixels. */
  lips(figure: Figure): { left: number; top: number; right: number; bottom: number } {
    const tile = figure.tile.getBoundingClientRect();
    this.frame(tile);
    this.camera.updateMatrixWorld();
    const point = new Vector3();
    const xs: number[] = [];
    const ys: number[] = [];
    for (const v of this.head.lips) {
      point.fromArray(figure.poser.points, 3 * v).project(this.camera);
      xs.push(tile.left + ((point.x + 1) / 2) * tile.width);
      ys.push(tile.top + ((1 - point.y) / 2) * tile.height);
    }
    return { left: Math.min(...xs), top: Math.min(...ys), right: Math.max(...xs), bottom: Math.max(...ys) };
  }
}
