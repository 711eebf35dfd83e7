# SPDX-License-Identifier: Apache-2.0
"""The OpenGL programs of the rendered data set: cloth, skin and hair on a body, and what is behind it."""

# KIND and PATTERN are defined when it is compiled: llvmpipe runs both sides of every branch that is left.
BODY_VERTEX = """
#version 330
uniform mat4 clip;
uniform float loose, seed;
in vec3 position, normal, canonical;
in vec4 feature;
out vec3 at, facing, home;
out vec4 mark;

float wave(vec3 p) { return sin(p.x + 1.3 * sin(p.y)) * sin(p.y * 1.1 + p.z) * sin(p.z * 0.9 + p.x); }

void main() {
    home = canonical;
    mark = feature;
    facing = normal;
    float folds = 0.6 + 0.4 * wave(canonical * 23.0 + seed);
    at = position + normal * loose * folds;
    gl_Position = clip * vec4(at, 1.0);
}
"""

BODY_FRAGMENT = """
#version 330
#define KIND %d
#define PATTERN %d
uniform sampler2DArray patches;
uniform sampler3D cloud;
uniform vec3 harmonics[9];
uniform vec3 lamp, lamp_colour, eye, limits;
uniform vec3 colours[2];
uniform int patch_index;
uniform float scale, shine, exposure, seed, loose;
in vec3 at, facing, home;
in vec4 mark;
out vec4 colour;

// Noise of four channels, smooth between random values one unit apart.
vec4 noises(vec3 x) { return texture(cloud, x / 32.0); }
float noise(vec3 x) { return noises(x).r; }
float rough(vec3 p) { return 0.6 * noise(p) + 0.4 * noise(p * 2.7); }

bool worn() {
    float ragged = 0.02 * (noise(home * 9.0 + seed) - 0.5);
    if (KIND == 1) return home.z > limits.x + ragged && home.z < limits.y;
    if (KIND == 2)
        return (mark.x > 0.0 || (home.z > limits.x + ragged && home.z < limits.y)) && mark.x < limits.z + ragged;
    if (KIND == 3) return home.z < limits.y;
    if (KIND == 6) return home.z > limits.x;
    if (KIND == 10) return home.z < limits.y;
    if (KIND == 4) {
        // Hair grows above a line that falls from the forehead to the nape.
        float line = limits.y + ragged + clamp((limits.x - home.y) * 3.0, -0.13, 0.1);
        return home.z > line;
    }
    return true;
}

vec3 cloth(vec3 p) {
    vec3 q = p * scale;
    float along = mark.x > 0.3 ? mark.x * 0.28 * scale : q.z;
    if (PATTERN == 1) return colours[int(fract(along) > 0.5)];
    if (PATTERN == 2)
        return colours[int(fract(atan(q.x, q.y + 1e-4) * scale * 0.16 + (mark.x > 0.3 ? q.y : 0.0)) > 0.5)];
    if (PATTERN == 3) return mix(colours[0], colours[1], 0.5 * step(0.5, fract(along)) + 0.5 * step(0.5, fract(q.x)));
    if (PATTERN == 4) return colours[int(length(fract(q.xz) - 0.5) < 0.28)];
    if (PATTERN == 5) return colours[int(rough(q + seed) > 0.5)];
    vec3 picture = texture(patches, vec3(p.xz * scale * 0.15 + seed, patch_index)).rgb;
    if (PATTERN == 6) return picture * picture * mix(vec3(1.0), 2.0 * colours[0], 0.4);
    if (PATTERN == 7 && abs(p.x) < 0.13 && p.z > 0.18 && p.z < 0.42 && mark.x < 0.0) {
        picture = texture(patches, vec3((p.x + 0.13) / 0.26, (p.z - 0.18) / 0.24, patch_index)).rgb;
        return p.y < 0.03 || fract(seed * 7.0) > 0.6 ? picture * picture : colours[0];
    }
    return colours[0];
}

void main() {
    if (!worn()) discard;
    vec3 n = normalize(facing);
    vec3 toward = normalize(eye - at);
    vec3 base;
    float bump = 0.0, gain = 1.0;
    if (KIND == 0 || KIND > 7) {
        base = colours[0] * (0.85 + 0.3 * rough(home * 14.0 + seed));
        base = mix(base, colours[1], clamp(mark.z, 0.0, 1.0) * 0.8);
        base = mix(base, base * vec3(0.9, 0.45, 0.45), clamp(-mark.z, 0.0, 1.0));
        // A shaved or bearded chin.
        float beard = smoothstep(limits.y, limits.y - 0.015, home.z) * smoothstep(limits.x, limits.x - 0.03, home.y);
        base = mix(base, colours[1], beard * mark.y * limits.z);
        bump = 0.05;
    } else if (KIND == 5) {
        base = mark.w > 0.5 ? colours[1] : vec3(0.75);
    } else if (KIND == 4 || KIND == 7) {
        float strand = noise(vec3(home.x * 160.0, home.y * 160.0, home.z * 12.0 + seed));
        base = colours[0] * (0.55 + 0.9 * strand);
        bump = 0.35;
    } else {
        base = cloth(home);
        float fold = rough(home * vec3(16.0, 16.0, 9.0) + seed);
        gain = 0.72 + 0.5 * fold;
        bump = 0.3 + 6.0 * loose;
    }
    vec3 slope = noises(home * 31.0 + seed).gba - 0.5;
    n = normalize(n + bump * slope);
    if (dot(n, toward) < 0.0) n = normalize(n - 2.0 * dot(n, toward) * toward);
    vec3 around = harmonics[0] + harmonics[1] * n.y + harmonics[2] * n.z + harmonics[3] * n.x + harmonics[4] * n.x * n.y
        + harmonics[5] * n.y * n.z + harmonics[6] * (3.0 * n.z * n.z - 1.0) + harmonics[7] * n.x * n.z
        + harmonics[8] * (n.x * n.x - n.y * n.y);
    vec3 lit = max(around, 0.0) + lamp_colour * max(dot(n, lamp), 0.0);
    float highlight = pow(max(dot(n, normalize(lamp + toward)), 0.0), 30.0);
    vec3 result = exposure * (base * gain * lit + shine * highlight * lamp_colour);
    colour = vec4(pow(result / (1.0 + 0.25 * result), vec3(1.0 / 2.2)), 1.0);
}
"""

BACKGROUND_VERTEX = """
#version 330
out vec2 place;
void main() {
    place = vec2(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0);
    gl_Position = vec4(place, 0.0, 1.0);
}
"""

BACKGROUND_FRAGMENT = """
#version 330
uniform sampler2D picture;
uniform bool panorama;
uniform vec4 window;
uniform mat3 rays;
uniform float exposure;
in vec2 place;
out vec4 colour;
void main() {
    if (!panorama) {
        colour = vec4(texture(picture, window.xy + window.zw * (vec2(place.x, -place.y) * 0.5 + 0.5)).rgb, 1.0);
        return;
    }
    vec3 d = normalize(rays * vec3(place.x, -place.y, 1.0));
    vec2 where = vec2(atan(d.x, d.y) / 6.2831853 + 0.5, acos(clamp(d.z, -1.0, 1.0)) / 3.14159265);
    vec3 seen = exposure * textureLod(picture, where, 0.0).rgb;
    colour = vec4(pow(seen / (1.0 + 0.25 * seen), vec3(1.0 / 2.2)), 1.0);
}
"""
